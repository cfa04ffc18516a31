"""gunicorn with start(runner) in wsgi.py; HUP reloads the site and its jobs."""

bind = "127.0.0.1:8000"
workers = 2
worker_class = "gthread"
threads = 4
# with preload_app HUP renews the jobs' code, but not the pages': gunicorn keeps what it has loaded
preload_app = False
max_requests = 10_000
graceful_timeout = 30
