/** Says what it was started with, and stays. */
public class Told {
    public static void main(String[] args) throws Exception {
        System.out.println("heap=" + (Runtime.getRuntime().maxMemory() >> 20));
        System.out.println("given=" + java.lang.management.ManagementFactory.getRuntimeMXBean().getInputArguments());
        for (String name : new String[] {"JAVA_HOME", "PATH"}) {
            System.out.println(name + "=" + System.getenv(name));
        }
        System.out.println("runs=" + System.getProperty("java.home"));
        System.out.println("told");
        Thread.currentThread().join();
    }
}
