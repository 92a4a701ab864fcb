from celery_dead_letters import *
