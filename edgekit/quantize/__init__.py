"""Which tensor gets which number format, and what that promises."""
