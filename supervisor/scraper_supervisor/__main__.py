"""`python -m scraper_supervisor`, and the command `scraper-supervisor`."""

from scraper_supervisor.console.cli import main

if __name__ == "__main__":
    main()
