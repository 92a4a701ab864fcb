"""A sample Celery app, as a user would write one: it knows nothing of how it is deployed."""
