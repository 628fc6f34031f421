"""Fakes of real parts; each is held to the contract suite its real part passes."""
