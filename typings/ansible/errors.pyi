# Variables: filters have another class in their place where Ansible is not installed.
AnsibleError: type[Exception]
AnsibleFilterError: type[Exception]
