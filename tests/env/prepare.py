#!/usr/bin/env python3
"""Prepares the servers that the tests run, and prints the directory that holds them.

    tests/env/prepare.py [ENV...]       all of them by default; quick when nothing is to be done

Each gunicorn-VERSION becomes a virtual environment DIR/ENV, where DIR is $AIRDOCK_TEST_ENV or target/test-env, with
packages from the index that pip is configured for; `wheels` becomes a directory of packages for machines that reach no index, `uv` one with
that program.
`jdk` becomes DIR/jdk/app.jar; `tomcat` becomes DIR/tomcat/app.jar,
whose manifest names Debian's Tomcat; `promtool` becomes DIR/promtool/promtool, out of Debian's package. Exit codes: 0 prepared; 2 no such environment; 3 not prepared, with the reason
(tests then say that they are skipped, and why).
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

APPS = ["flask==3.1.3", "django==5.2.19", "gevent==26.9.0", "packaging"]
ENVIRONMENTS = {
    "gunicorn-27.0.1": ["gunicorn==27.0.1", "uvicorn==0.54.0", *APPS],
    "gunicorn-23.0.0": ["gunicorn==23.0.0", *APPS],
    "fastapi": ["fastapi==0.115.*", "uvicorn==0.54.0"],
    # 20.1 imports pkg_resources, which setuptools 82 no longer has.
    "gunicorn-20.1.0": ["gunicorn==20.1.0", "setuptools<82", *APPS],
}
STAMP = "airdock-requirements.txt"
# What docs/first-deploy.md installs.
WHEELS = ["django==5.2.19", "gunicorn==27.0.1"]

JAVA_APPS = Path(__file__).resolve().parents[1] / "apps" / "jvm"
DEBIAN_JARS = Path("/usr/share/java")
JARS = {
    "jdk": ("InheritedServer", []),
    "tomcat": ("TomcatServer", ["tomcat10-%s.jar" % part for part in (
        "annotations-api", "api", "catalina", "coyote", "el-api", "jaspic-api", "jni", "jsp-api", "juli",
        "servlet-api", "util", "util-scan")]),
}
# Each JVM would leave a directory for its performance counters behind.
NO_COUNTERS = "-J-XX:-UsePerfData"
SOURCES = {"jdk": ["InheritedServer.java"], "tomcat": ["SharedSocketDrain.java", "TomcatServer.java"]}


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


def prepare_uv(where):
    prepare(where, ["uv==0.13.9"])
    # Alone in a directory, so that nothing else of the environment gets into a PATH.
    only = where / "only"
    only.mkdir(exist_ok=True)
    if not (only / "uv").exists():
        shutil.copy2(where / "bin" / "uv", only / "uv")


def prepare_wheels(where):
    wanted = "\n".join([sys.version, *WHEELS]) + "\n"
    stamp = where / STAMP
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    # For a pip that is certainly there.
    tools = where.parent / "gunicorn-27.0.1"
    prepare(tools, ENVIRONMENTS[tools.name])
    print("preparing %s" % where, file=sys.stderr)
    shutil.rmtree(where, ignore_errors=True)
    run([str(tools / "bin" / "python"), "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1",
         "--only-binary", ":all:", "--dest", str(where), *WHEELS], "fetch %s (offline? they are needed once)" % " ".join(WHEELS))
    stamp.write_text(wanted)


def prepare_jar(where, name):
    main, libraries = JARS[name]
    sources = [JAVA_APPS / source for source in SOURCES[name]]
    jars = [DEBIAN_JARS / library for library in libraries]
    wanted = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    stamp = where / STAMP
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    missing = [str(jar) for jar in jars if not jar.exists()]
    if missing:
        print("cannot build %s without %s (on Debian: apt install libtomcat10-java)" % (name, missing[0]), file=sys.stderr)
        sys.exit(3)
    print("preparing %s" % where, file=sys.stderr)
    shutil.rmtree(where, ignore_errors=True)
    classes = where / "classes"
    classes.mkdir(parents=True)
    java = "build the Java test servers (on Debian: apt install default-jdk-headless)"
    run(["javac", NO_COUNTERS, "-d", str(classes), "-cp", os.pathsep.join(map(str, jars)) or ".", *map(str, sources)], java)
    # A manifest's line has at most 72 bytes; a continued one begins with a space.
    manifest = "Main-Class: %s\n" % main
    if jars:
        manifest += "Class-Path: ." + "".join("\n  %s" % jar.as_uri() for jar in jars) + "\n"
    (where / "manifest").write_text(manifest)
    run(["jar", NO_COUNTERS, "cfm", str(where / "app.jar"), str(where / "manifest"), "-C", str(classes), "."], java)
    stamp.write_text(wanted)


def prepare_promtool(where):
    """Out of the package: installing that would start a Prometheus on this machine."""
    if (where / "promtool").exists():
        return
    print("preparing %s" % where, file=sys.stderr)
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    purpose = "fetch promtool from the package prometheus (not Debian, or offline?)"
    run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "prometheus"], purpose, where)
    package = str(next(where.glob("prometheus_*.deb")))
    run(["dpkg-deb", "--extract", package, str(where / "all")], purpose)
    (where / "all" / "usr" / "bin" / "promtool").rename(where / "promtool")
    shutil.rmtree(where / "all")
    os.remove(package)


def run(command, purpose, where=None):
    try:
        done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, cwd=where)
        why = done.stderr.strip() if done.returncode else None
    except OSError as e:
        why = str(e)
    if why is not None:
        print("cannot %s:\n%s" % (purpose, why[-2000:]), file=sys.stderr)
        sys.exit(3)


def main():
    known = [*ENVIRONMENTS, *JARS, "promtool", "uv", "wheels"]
    names = sys.argv[1:] or known
    for name in names:
        if name not in known:
            print("no environment %s; there are %s" % (name, ", ".join(known)), file=sys.stderr)
            sys.exit(2)
    base = directory()
    base.mkdir(parents=True, exist_ok=True)
    with open(base / "lock", "w") as lock:  # tests of one run may ask at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in names:
            if name == "promtool":
                prepare_promtool(base / name)
            elif name == "uv":
                prepare_uv(base / name)
            elif name == "wheels":
                prepare_wheels(base / name)
            elif name in JARS:
                prepare_jar(base / name, name)
            else:
                prepare(base / name, ENVIRONMENTS[name])
    print(base)


if __name__ == "__main__":
    main()
