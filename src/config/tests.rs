//! Of the configuration as a whole.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::spec::*;
use super::*;

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn the_examples_are_a_configuration() {
    let config = load(Path::new(REPOSITORY)).unwrap_or_else(|e| panic!("{e}"));
    let names: Vec<_> = config.services.keys().map(|name| &**name).collect();
    assert_eq!(names, ["airship", "airship-celery", "search"]);
    assert_eq!(config.daemon.access.len(), 2);

    let airship = &config.services["airship"];
    assert!(matches!(&airship.kind, Kind::Gunicorn { workers: Workers::Count(4), args, .. } if args.len() == 4));
    assert!(airship.reload.overlap);
    assert_eq!(airship.stop.grace, Some(Duration::from_secs(35)));
    assert_eq!(airship.logs.max_size, 50_000_000);

    let celery = &config.services["airship-celery"];
    assert_eq!((celery.instances, celery.reload.overlap), (2, false));
    let search = &config.services["search"];
    assert!(matches!(&search.ready.by[..], [ReadyBy::Http(probe)] if probe.port == Some(Template::new("{port}"))));
}
