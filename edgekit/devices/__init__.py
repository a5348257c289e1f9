"""Places where a bundle can run: this machine, a board behind ssh, an emulated board."""
