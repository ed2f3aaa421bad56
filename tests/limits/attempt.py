"""A hostile program: tries once what a key of [limits] forbids, and says what came of it."""

import ctypes
import errno
import mmap
import os
import resource
import signal
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)


def must(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def open_files():
    for _ in range(200):
        os.open("/dev/null", os.O_RDONLY)


def core():
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))


def file_size():
    with open(os.environ["SCRATCH"], "wb", buffering=0) as file:
        for _ in range(16):
            file.write(bytes(1 << 16))


def stack():
    resource.setrlimit(resource.RLIMIT_STACK, (32 << 20, 32 << 20))


def memory():
    mmap.mmap(-1, 512 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def locked_memory():
    area = mmap.mmap(-1, 48 << 10)
    must(libc.mlock(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(area))), ctypes.c_size_t(48 << 10)))


def message_queues():
    rt = ctypes.CDLL("librt.so.1", use_errno=True)
    name = b"/airdock-test-%d" % os.getpid()
    queue = must(rt.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, None))
    rt.mq_unlink(name)
    os.close(queue)


def cpu_time():
    child = os.fork()
    if child == 0:
        begun = time.process_time()
        while time.process_time() - begun < 2.5:
            pass
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise OSError(errno.EPERM, signal.Signals(os.WTERMSIG(status)).name)


def pending_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    for _ in range(40):
        must(libc.sigqueue(os.getpid(), signal.SIGRTMIN, ctypes.c_void_p(0)))


def user_processes():
    children = []
    try:
        for _ in range(150):
            child = os.fork()
            if child == 0:
                time.sleep(100)
                os._exit(0)
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def realtime_priority():
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(5))


def nice():
    os.setpriority(os.PRIO_PROCESS, 0, 0)


def oom_score():
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("0")


what = sys.argv[1]
try:
    globals()[what]()
    print("broke out", flush=True)
except (OSError, MemoryError, ValueError) as why:
    print("held:", why, flush=True)
while True:
    time.sleep(1000)
