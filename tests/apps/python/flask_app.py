"""A Flask application: `gunicorn flask_app:app`."""

from flask import Flask, request

import release

app = Flask(__name__)


@app.route("/", defaults={"path": ""})
@app.route("/<path:path>")
def page(path):
    status, text = release.answer("/" + path, request.args.get("seconds"))
    return text, status, {"Content-Type": "text/plain"}
