"""diffkit: an extensible plugin framework for diffusion variants.

Importing this package imports no torch: `__init__.pyi` lists the public names, each is loaded on first use (PEP 562).
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
