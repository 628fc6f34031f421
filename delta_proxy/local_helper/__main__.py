"""`python -m delta_proxy.local_helper`."""

from delta_proxy.local_helper.main import main

main()
