"""A service of the soak: accepts GSSAPI contexts on a port of loopback, which it prints, and answers with the
initiator's principal, or with why there is none. Ends with the end of standard input."""

import socketserver
import struct
import sys
import threading

import gssapi


class Accept(socketserver.StreamRequestHandler):
    timeout = 10

    def handle(self):
        size = self.rfile.read(4)
        if len(size) < 4:  # the worker has gone
            return
        try:
            context = gssapi.SecurityContext(creds=gssapi.Credentials(usage="accept"), usage="accept")
            context.step(self.rfile.read(struct.unpack(">I", size)[0]))
            answer = str(context.initiator_name)
        except gssapi.exceptions.GSSError as error:
            answer = f"{type(error).__name__}: {error}"
        self.wfile.write(struct.pack(">I", len(answer.encode())) + answer.encode())


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64


with Server(("127.0.0.1", 0), Accept) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
    server.shutdown()
