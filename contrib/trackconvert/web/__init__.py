"""The converter as a small web site: upload files, watch their conversions, fetch the results.

`trackconvert.web.app:app` is the WSGI application; the conversions are jobs of `trackconvert.jobs:runner`.
"""
