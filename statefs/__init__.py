"""statefs: a versioned filesystem for the state of applications."""

__version__ = "0.1.0"
