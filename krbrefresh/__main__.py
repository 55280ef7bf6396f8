"""`python -m krbrefresh` is the command `krbrefresh`."""

from .cli import main

raise SystemExit(main())
