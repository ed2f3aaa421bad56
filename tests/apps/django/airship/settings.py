"""A project as in production: one database for all hosts (AIRSHIP_DATABASE), static files with hashed names in a directory of
the host's that all of its releases share.

The names that a release's pages use are in a manifest of the release's own: with one for all, a worker of the old release
that is started anew would read the new release's names, and so would one that is gone back to.
"""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = "only for tests"
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "airship.urls"
WSGI_APPLICATION = "airship.wsgi.application"
INSTALLED_APPS = ["django.contrib.staticfiles", "pages"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["AIRSHIP_DATABASE"],
        # Who writes waits for the others, and readers for nobody.
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF",
        },
    }
}

STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "static"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "airship.storage.OfThisRelease"},
}
