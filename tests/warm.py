"""
A Python that has loaded torch already. Tests start many scripts as a user does, and loading torch is most of what that
costs. `python -IS warm.py SCRIPT ARGS...` asks the server at the socket NANOMORPH_WARM for a fork of itself that runs the
script: a process of its own, with the arguments, environment, folder and files of the one that asked. The one that asked
passes the signals on that it gets; if it is killed, the fork is. Our own modules are loaded anew. Where that would not be
the same (other threads, a module path, no script) it becomes an ordinary Python.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# what torch and Python read once, when they start; compare.py puts our folder on the path of all that it starts, for good
LIKE = dict(OMP_NUM_THREADS=('1',), PYTHONPATH=(None, ROOT))
PASSED_ON = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def ask(argv: list[str]):
    """Run argv in a fork of the server, and end as it ends."""
    server = os.environ.pop('NANOMORPH_WARM', '')
    if (
        not server
        or not argv
        or not argv[0].endswith('.py')
        or any(os.environ.get(k) not in like for k, like in LIKE.items())
    ):
        os.execv(sys.executable, [sys.executable, *argv])
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(server)
        request = json.dumps(dict(argv=argv, cwd=os.getcwd(), env=dict(os.environ))).encode()
        socket.send_fds(s, [len(request).to_bytes(4, 'big')], [0, 1, 2])
        s.sendall(request)
        for n in PASSED_ON:
            signal.signal(n, lambda n, _: s.send(bytes([n])))
        code = int.from_bytes(s.recv(4), 'big', signed=True)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def serve(path: str) -> str:
    """Answer until stdin ends. Returns in a fork that was asked for, with the script that it shall run."""
    import gc

    import torch
    import torch._dynamo  # noqa: F401  an optimizer loads it, and a model without memory
    import tqdm  # noqa: F401

    with contextlib.suppress(ImportError):  # what draws tables and pictures
        import bokeh.models  # noqa: F401
        import matplotlib.figure  # noqa: F401
        import scipy.stats  # noqa: F401

    sys.dont_write_bytecode, sys.pycache_prefix = False, path + '.pyc'  # our modules are compiled once
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print('ready', flush=True)
    while listener in select.select([listener, 0], [], [])[0]:
        s, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return answer(s)
        s.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # those that are over
                pass
    sys.exit()


def answer(s: socket.socket) -> str:
    """Tell who asks how a fork of this process ended; in that fork, return its script."""
    head, fds, *_ = socket.recv_fds(s, 4, 3)
    text = b''
    while len(text) < int.from_bytes(head, 'big'):
        text += s.recv(2**16)
    if child := os.fork():
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if select.select([s], [], [], 0.01)[0]:
                os.kill(child, int.from_bytes(s.recv(1)) or signal.SIGKILL)  # b'': the one that asked is gone
        with contextlib.suppress(BrokenPipeError):
            s.sendall(os.waitstatus_to_exitcode(ended[1]).to_bytes(4, 'big', signed=True))
        os._exit(0)
    s.close()
    for i, fd in enumerate(fds):
        os.dup2(fd, i)
        os.close(fd)
    request = json.loads(text)
    os.chdir(request['cwd'])
    os.environ.clear()
    os.environ.update(request['env'])
    sys.argv = request['argv']
    script = os.path.abspath(sys.argv[0])
    sys.path[0] = os.path.dirname(script)
    sys.path[1:1] = [ROOT] if 'PYTHONPATH' in os.environ else []
    return script


if __name__ == '__main__':
    if sys.argv[1] == 'serve':
        import runpy

        runpy.run_path(serve(sys.argv[2]), run_name='__main__')
    else:
        ask(sys.argv[1:])
