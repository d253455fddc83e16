"""Laws of single components of the default plugins `ddpm` and `basics`."""
