"""The privileged half: whatever can touch a keytab lives here. Nothing that a worker imports imports this."""
