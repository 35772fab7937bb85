"""Find, list and read what holds images: tars, folders of images, tables."""
