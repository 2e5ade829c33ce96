"""Data sets: loading, preparation, augmentation, constructed sets."""
