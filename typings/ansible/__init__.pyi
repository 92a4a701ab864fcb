# What the project uses of Ansible, which has no types of its own.
