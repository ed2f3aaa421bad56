"""A Django application in one file: `gunicorn django_app:application`.

As in production it answers only for its own host name, and redirects plain HTTP that its proxy did not announce as
HTTPS: a probe needs `host` and the header `X-Forwarded-Proto`.
"""

import os

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import re_path

import release

settings.configure(
    DEBUG=False,
    SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", "only for tests"),
    ALLOWED_HOSTS=["airship.example.org", "localhost", "127.0.0.1"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"],
    SECURE_SSL_REDIRECT=bool(os.environ.get("DJANGO_SSL_REDIRECT")),
    SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"),
)
django.setup()


def page(request):
    status, text = release.answer(request.path, request.GET.get("seconds"))
    return HttpResponse(text, status=status, content_type="text/plain")


urlpatterns = [re_path(".*", page)]
application = get_wsgi_application()
