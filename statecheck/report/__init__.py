"""From verdicts to what people and machines read: `report.json`, Markdown, pictures, and the terminal."""
