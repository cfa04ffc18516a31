"""Django, its wsgi.py: `gunicorn with_django:application`. The settings and the page would be in files of their own."""

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from jobs import runner, work

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
urlpatterns = [path("", lambda request: HttpResponse(work.enqueue().id))]

application = runner.wsgi(get_wsgi_application(), mount="/jobs")
