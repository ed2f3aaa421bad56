//! A JVM: `java [options] -jar JAR [args]`, or `-cp CLASSPATH MAIN`. The socket is fd 0, since
//! `System.inheritedChannel` looks nowhere else.

use super::{CommandLine, Context};
use crate::config::java::Heap;
use crate::config::spec::{Java, JvmProgram, Template};

pub(super) fn command_line(
    context: &Context<'_>,
    program: &JvmProgram,
    java: &Java,
    args: &[Template],
    variables: &[(String, String)],
) -> Result<CommandLine, String> {
    let mut argv = vec![self::java(context, java)?];
    // First, for later ones win.
    argv.extend(Heap::of(context.spec, java, variables).option());
    argv.extend(context.expand_all(&java.options)?);
    match program {
        JvmProgram::Jar(jar) => argv.extend(["-jar".to_owned(), context.expand(jar)?]),
        JvmProgram::Main { class, classpath } => {
            if !classpath.is_empty() {
                argv.extend(["-cp".to_owned(), context.expand_all(classpath)?.join(":")]);
            }
            argv.push(context.expand(class)?);
        }
    }
    argv.extend(context.expand_all(args)?);
    Ok(CommandLine { argv, socket_on_stdin: !context.spec.sockets.is_empty() })
}

/// The program.
///
/// # Errors
/// As of [`Context::expand`].
pub(super) fn java(context: &Context<'_>, java: &Java) -> Result<String, String> {
    match &java.home {
        Some(home) => Ok(format!("{}/bin/java", context.expand(home)?.trim_end_matches('/'))),
        None => Ok("java".to_owned()),
    }
}
