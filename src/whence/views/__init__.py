"""What a person sees of an attribution: terminal, HTML file, notebook."""
