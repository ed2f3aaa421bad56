import os

from django.contrib.staticfiles.storage import ManifestStaticFilesStorage


class OfThisRelease(ManifestStaticFilesStorage):
    manifest_name = "manifest-%s.json" % os.environ.get("AIRDOCK_RELEASE", "none")
