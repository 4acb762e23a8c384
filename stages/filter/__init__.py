"""Which pages a dump keeps, by dump level."""
