"""The page that a browser opens, and how it is built."""
