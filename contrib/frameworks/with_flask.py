"""Flask: `gunicorn with_flask:app`."""

from flask import Flask
from jobs import runner, work

app = Flask(__name__)
app.wsgi_app = runner.wsgi(app.wsgi_app, mount="/jobs")


@app.get("/")
def make():
    return work.enqueue().id
