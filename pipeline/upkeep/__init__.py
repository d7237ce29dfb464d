"""Keep what was labelled whole and tidy: mend what is damaged, remove what nobody needs."""
