"""What a benchmark found, for people and for machines: terminal, HTML, Markdown, JUnit."""
