"""Submit jobs to the places where they run, and ask after them."""
