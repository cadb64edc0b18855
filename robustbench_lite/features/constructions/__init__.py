"""One construction a file; the class attribute `name` is all the registration there is."""
