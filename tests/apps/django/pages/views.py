from pathlib import Path

from django.http import HttpResponse
from django.templatetags.static import static

from pages.models import Visit

NAME = (Path(__file__).parent / "name.txt").read_text().strip()


def index(request):
    """Every request writes a row and reads one."""
    visit = Visit.objects.create(path=request.path)
    seen = Visit.objects.get(pk=visit.pk)
    text = "release=%s asset=%s visit=%d\n" % (NAME, static("pages/site.css"), seen.pk)
    return HttpResponse(text, content_type="text/plain")


def health(request):
    Visit.objects.exists()
    return HttpResponse("ok\n", content_type="text/plain")
