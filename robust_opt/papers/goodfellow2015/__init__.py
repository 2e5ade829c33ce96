"""Goodfellow, Shlens and Szegedy 2015 (arXiv 1412.6572)."""
