"""Shaham, Yamada and Negahban 2015 (arXiv 1511.05432)."""
