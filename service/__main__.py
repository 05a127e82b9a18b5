"""`python -m service` is `serpentine`."""

from service.cli import main

raise SystemExit(main())
