"""`python -m delta_proxy.admin`."""

from delta_proxy.admin.cli import main

main()
