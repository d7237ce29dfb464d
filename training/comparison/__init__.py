"""Several evaluated runs side by side: the figures, and one page to read and to send on."""
