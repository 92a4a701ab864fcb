from celery import shared_task
from django.contrib.auth.models import User


@shared_task
def count_users() -> int:
    return User.objects.count()
