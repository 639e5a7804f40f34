# Says which container answers, which of its processes, and which client asked.
import os


def application(environ, start_response):
    start_response('200 OK', [('Content-Type', 'text/plain')])
    who = os.environ['HOSTNAME'], os.getpid(), environ['REMOTE_ADDR'], environ['REMOTE_PORT']
    return [('%s pid=%d client=%s:%s\n' % who).encode()]
