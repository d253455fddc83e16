"""Likelihood: the variational bound, the bound in continuous time, and the density of the probability flow.

Nothing here is imported before its first use; `__init__.pyi` lists the names.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
