//! A JVM: `java [options] -jar JAR [args]`, or `-cp CLASSPATH MAIN`. The socket is fd 0, since
//! `System.inheritedChannel` looks nowhere else.

use super::{CommandLine, Context};
use crate::config::spec::{JvmProgram, Template};

pub(super) fn command_line(
    context: &Context<'_>,
    program: &JvmProgram,
    java: Option<&Template>,
    java_options: &[Template],
    args: &[Template],
) -> Result<CommandLine, String> {
    let mut argv = vec![java.map_or_else(|| Ok("java".to_owned()), |java| context.expand(java))?];
    argv.extend(context.expand_all(java_options)?);
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
