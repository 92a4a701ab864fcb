"""In the manner of cookiecutter-django: all that differs by place comes from the environment."""

import environ

env = environ.Env()
SECRET_KEY = env("DJANGO_SECRET_KEY")
USE_TZ = True
DATABASES = {"default": env.db("DATABASE_URL")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django_celery_beat",
    "django_celery_results",
    "shop",
]
CELERY_BROKER_URL = env("CELERY_BROKER_URL")
CELERY_RESULT_BACKEND = "django-db"
CELERY_RESULT_EXTENDED = True
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_SCHEDULE = {"count": {"task": "shop.tasks.count_users", "schedule": 5.0}}
