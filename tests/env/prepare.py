#!/usr/bin/env python3
"""Prepares the Python servers that the tests run, and prints the directory that holds them.

    tests/env/prepare.py [ENV...]       all of them by default; quick when nothing is to be done

Each ENV becomes a virtual environment DIR/ENV, where DIR is $AIRDOCK_TEST_ENV or target/test-env. Packages come from
the index that pip is configured for. Exit codes: 0 prepared; 2 no such environment; 3 not prepared, with the reason
(tests then say that they are skipped, and why).
"""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

APPS = ["flask==3.1.3", "django==5.2.19", "gevent==26.9.0", "packaging"]
ENVIRONMENTS = {
    "gunicorn-27.0.1": ["gunicorn==27.0.1", "uvicorn==0.54.0", *APPS],
    "gunicorn-23.0.0": ["gunicorn==23.0.0", *APPS],
    # 20.1 imports pkg_resources, which setuptools 82 no longer has.
    "gunicorn-20.1.0": ["gunicorn==20.1.0", "setuptools<82", *APPS],
}
STAMP = "airdock-requirements.txt"


def directory():
    chosen = os.environ.get("AIRDOCK_TEST_ENV")
    root = Path(__file__).resolve().parents[2]
    return Path(chosen).absolute() if chosen else root / "target" / "test-env"


def prepare(where, requirements):
    wanted = "\n".join([sys.version, *requirements]) + "\n"
    stamp = where / STAMP
    if stamp.is_file() and stamp.read_text() == wanted and (where / "bin" / "python").exists():
        return
    print("preparing %s" % where, file=sys.stderr)
    shutil.rmtree(where, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(where)], "create a virtual environment (on Debian: apt install python3-venv)")
    run([str(where / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1",
         *requirements], "install %s (offline? they are needed once)" % " ".join(requirements))
    stamp.write_text(wanted)


def run(command, purpose):
    try:
        done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
        why = done.stderr.strip() if done.returncode else None
    except OSError as e:
        why = str(e)
    if why is not None:
        print("cannot %s:\n%s" % (purpose, why[-2000:]), file=sys.stderr)
        sys.exit(3)


def main():
    names = sys.argv[1:] or list(ENVIRONMENTS)
    for name in names:
        if name not in ENVIRONMENTS:
            print("no environment %s; there are %s" % (name, ", ".join(ENVIRONMENTS)), file=sys.stderr)
            sys.exit(2)
    base = directory()
    base.mkdir(parents=True, exist_ok=True)
    with open(base / "lock", "w") as lock:  # tests of one run may ask at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in names:
            prepare(base / name, ENVIRONMENTS[name])
    print(base)


if __name__ == "__main__":
    main()
