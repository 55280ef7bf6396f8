echo "$URL" | krbrefresh exec -- java \
    -Dsun.security.jgss.native=true \
    -Dsun.security.jgss.lib=libgssapi_krb5.so.2 \
    -Djavax.security.auth.useSubjectCredsOnly=false \
    Negotiate.java
