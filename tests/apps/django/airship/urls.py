from django.conf import settings
from django.urls import path, re_path
from django.views.static import serve

from pages import views

urlpatterns = [
    path("", views.index),
    path("healthz", views.health),
    # A web server in front does this in production.
    re_path("^static/(?P<path>.*)$", serve, {"document_root": settings.STATIC_ROOT}),
]
