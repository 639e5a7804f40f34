# Says which container answers, and which client asked.
import http.server
import os
import signal
import sys


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(('%s client=%s:%d\n' % (os.environ['HOSTNAME'], *self.client_address)).encode())


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
http.server.HTTPServer(('', 80), Answer).serve_forever()
